"""The interfaces of other segmenters, served by this one."""

__all__: list[str] = []

"""The interfaces of other segmenters, served by this one."""

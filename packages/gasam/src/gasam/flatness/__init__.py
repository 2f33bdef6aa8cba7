"""How flat a minimum is: the Hessian's largest eigenvalues, and the loss in a ball around the weights."""

from ._ball import BallCurve, loss_in_ball
from ._eigenvalue import top_eigenvalue
from ._plot import plot

__all__ = ["BallCurve", "loss_in_ball", "plot", "top_eigenvalue"]

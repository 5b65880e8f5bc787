"""What compression costs: the metrics of ``kvtool eval``, measured over a store's own documents."""

from .evaluation import carry_out, evaluate
from .gate import Gate
from .plan import Plan, plan
from .run import Progress
from .scope import Scope

__all__ = ["Gate", "Plan", "Progress", "Scope", "carry_out", "evaluate", "plan"]

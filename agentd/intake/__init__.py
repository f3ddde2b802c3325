"""How events come in: put in order, journaled, acknowledged; what is missing is asked for.

`Intake` is the path of every event. `Drain` reads what arrived while we were away, `Audit` looks for what was never
pushed, and `Questions` asks the platform about holes and the disk about repeats.
"""

from agentd.intake.actor import Intake
from agentd.intake.audit import Audit
from agentd.intake.drain import Drain
from agentd.intake.questions import Questions

__all__ = ["Audit", "Drain", "Intake", "Questions"]

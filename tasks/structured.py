"""structlog, which imports rich wherever that is installed, to draw tracebacks as we do not: a twentieth of what a
process takes to start.
"""

from __future__ import annotations

import sys

_unseen = "rich" not in sys.modules
if _unseen:
    sys.modules["rich"] = None  # type: ignore[assignment]  # what import takes for "there is none"
import structlog as structlog  # noqa: E402
from structlog.stdlib import ProcessorFormatter as ProcessorFormatter  # noqa: E402
from structlog.types import EventDict as EventDict  # noqa: E402
from structlog.types import Processor as Processor  # noqa: E402
from structlog.types import WrappedLogger as WrappedLogger  # noqa: E402

if _unseen:
    del sys.modules["rich"]

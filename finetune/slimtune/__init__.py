"""The library under the scripts: config, stages, data, models, training, evaluation, export.

Nothing of it can be imported, `--help` included, without the packages that read the settings: that
is told here in three lines, before an import of one of them fails.
"""

import sys

from slimtune.console import tell_error
from slimtune.errors import ResourceError
from slimtune.packages import GROUND, require_packages

try:
    require_packages(GROUND)
except ResourceError as missing:
    sys.exit(tell_error(missing))

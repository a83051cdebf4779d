"""The chips of the training tests serve here too."""

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "training" / "conftest.py"
_spec = importlib.util.spec_from_file_location("training_fixtures", _path)
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
chips, pristine_chips = _fixtures.chips, _fixtures.pristine_chips

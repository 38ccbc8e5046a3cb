"""What several test modules of the CSI driver need. Whoever imports it has our programs in the path."""

import os
from pathlib import Path

_TARGET = Path(__file__).parents[3] / "client-native/target"
os.environ["PATH"] = os.pathsep.join([str(_TARGET / "debug"), str(_TARGET / "release"), os.environ["PATH"]])

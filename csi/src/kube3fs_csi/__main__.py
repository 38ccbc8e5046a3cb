"""`python -m kube3fs_csi`."""

import sys

from kube3fs_csi.cli import main

sys.exit(main())

import sys
from pathlib import Path

# The demo is a program of the repository, not of the package: `python -m scripts.demo` finds it in the root.
sys.path.insert(0, str(Path(__file__).parents[3]))

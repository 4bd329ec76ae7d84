__version__ = "0.1.0"

# names of all modules, loaded on first use (nbs/api.ipynb); nbdev rewrites only the version above
from mtrouter_nb.api import __dir__, __getattr__  # noqa: E402, F401

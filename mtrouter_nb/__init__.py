__version__ = "0.1.0"

# public names, each loaded on first use from where __init__.pyi says (nbs/api.ipynb); nbdev rewrites only the version
import lazy_loader  # noqa: E402

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

from . import svm as svm

__version__: str

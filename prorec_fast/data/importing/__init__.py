"""From a user's own files to a data folder: `import_interactions`."""

from .run import import_interactions
from .settings import ImportSettings

__all__ = ["ImportSettings", "import_interactions"]

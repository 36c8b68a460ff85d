"""What is installed, what runs where, and whether every kernel computes what it should on this machine: the command
`prorec-fast doctor`.
"""

from .diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]

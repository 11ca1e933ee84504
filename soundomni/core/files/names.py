"""Names of files that model directories, run directories and imported checkpoints share."""

SPEC_FILE = "spec.yaml"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
LOCK_FILE = "lock.json"
RUN_FILES = frozenset({LOCK_FILE, "checkpoints"})
"""A directory that contains one of these is a run directory."""
REPORT_FILE = "import-report.json"

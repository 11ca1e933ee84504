"""Names of files that several rooms read and write: model directories, run directories and imported checkpoints share them."""

SPEC_FILE = "spec.yaml"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
LOCK_FILE = "lock.json"
REPORT_FILE = "import-report.json"

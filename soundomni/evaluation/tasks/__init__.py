"""What a model is asked to do when it is measured, one task per file: how the task is done, and how what comes out is scored."""

"""What has to hold on a GPU, step by step: `python -m benchmarks.gpu`, see plan.py."""

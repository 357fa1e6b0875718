"""Measuring runs and assets; `python -m custom.dreammapping.evaluation --help` scores a run's folder or a folder of pictures."""

"""Training speed beside other libraries: ``bench perf``."""

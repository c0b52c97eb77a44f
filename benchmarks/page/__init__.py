"""The sections of docs/benchmarks.md, each from the results that its scripts kept."""

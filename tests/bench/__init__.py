"""Benchmarks: `make bench` runs each `bench_*` module and writes its figures as JSON."""

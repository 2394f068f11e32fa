"""Updates on bare torch, by hand; :mod:`bench.perf.rivals.bare` runs them."""

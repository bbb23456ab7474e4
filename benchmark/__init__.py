"""How it is measured: volumes, features, probes, metrics, intervals. Knows no task and no site."""

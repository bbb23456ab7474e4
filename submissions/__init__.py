"""Models come in: manifests, loading, the runner and the ``tomoprobe`` command."""

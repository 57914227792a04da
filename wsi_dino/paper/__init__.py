"""The benchmark paper as a document that runs: what can be run here, running it, and its tables and figures."""

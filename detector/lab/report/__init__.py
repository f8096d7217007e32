"""The report: one self-contained HTML page of runs, probes, censuses and studies."""

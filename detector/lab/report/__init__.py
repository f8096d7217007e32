"""One self-contained HTML page of whatever runs, probes, censuses and studies have left in their folders."""

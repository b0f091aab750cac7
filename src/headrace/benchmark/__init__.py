"""Load generators, latency sweeps and records, through public faces only."""

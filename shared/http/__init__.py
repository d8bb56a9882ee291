"""HTTP as every service speaks it: limits, strict JSON, problem documents, deadlines, calls to neighbours."""

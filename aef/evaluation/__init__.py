"""How good is it: withheld dates, probes on labels, and what there is to beat."""

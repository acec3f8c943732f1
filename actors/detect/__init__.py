"""Detection: which readings are anomalies."""

"""Write: Arrow batches become rows, in the transaction that moves the ledger."""

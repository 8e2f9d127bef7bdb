"""Means and categories of collected inputs and predictions, summarised by bin and joined to the gate's evidence."""

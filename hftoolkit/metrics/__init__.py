"""How good predictions are, and how sure that is.

statistics       values, intervals and paired leads of any task, from what each row adds
classification   metrics of classes
probabilities    logits to probabilities and decisions, log loss, temperature
calibration      reliability bins and the calibration error
"""

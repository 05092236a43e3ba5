"""How good predictions are, and how sure that is.

statistics       values, intervals and paired leads of any task, from what each row adds
classification   metrics of classes
regression       metrics of predicted numbers
spans            metrics of named spans
extra            modules of the evaluate library that a recipe names
probabilities    logits to probabilities and decisions, log loss, temperature
calibration      reliability bins and the calibration error
"""

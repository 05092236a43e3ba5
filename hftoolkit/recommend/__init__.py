"""Recommendation, whole: log and catalogue, item tower, scorers, their fusion, ranking, predictor, card, commands."""

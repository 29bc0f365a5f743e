"""Passes over the vocabulary a tile at a time: what token_stats, token_topk and token_kl share."""

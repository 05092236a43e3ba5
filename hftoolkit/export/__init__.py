"""The exported model, and the gate that reloads it in a fresh process."""

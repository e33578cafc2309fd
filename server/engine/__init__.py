"""The engine: sequences, slots, schedules, and the one thread that owns llama.cpp. It knows nothing of HTTP."""

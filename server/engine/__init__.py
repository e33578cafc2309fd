"""The engine: sequences, slots, schedules, and the one thread that owns llama.cpp. It knows nothing of HTTP."""

import os

# llama.cpp's threads meet some 200 times a token, and libgomp lets them spin at each meeting for milliseconds by
# default. While other programs have the cores (the browser that shows the answer, say), they spin against each other:
# tokens took up to 220 ms beside two busy loops, and seconds beside a compiler. Spinning for some 70 µs and sleeping
# then: 33 to 110 ms there, and 72 tokens/s over HTTP on a quiet machine, as with the default; with a tenth of it 64.
# libgomp reads this when it is loaded, with llama_cpp.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

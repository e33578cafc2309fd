"""The engine: sequences, slots, schedules, and the one thread that owns llama.cpp. It knows nothing of HTTP."""

import os

# llama.cpp's threads meet some 200 times a token, and libgomp lets them spin at each meeting for milliseconds by
# default. While another program has one of the cores (the browser that shows the answer, say), they spin against
# each other: 2 threads on 2 busy cores took 360 to 560 ms a token. Spinning for microseconds and sleeping then takes
# 63 ms, and on a quiet machine the 14 ms that it took before. libgomp reads this when it is loaded, with llama_cpp.
os.environ.setdefault("GOMP_SPINCOUNT", "500")

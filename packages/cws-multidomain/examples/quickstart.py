"""cws-multidomain in a few lines."""

import cws_multidomain

print(cws_multidomain.__version__)

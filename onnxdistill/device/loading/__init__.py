"""Latency of one function under load: at a rate of requests, with clients that call back to back, and within a limit.

Timing calls one after the other says how long one takes on an idle machine. Users arrive when they like, and wait until
those before them are served. Three questions, one module each:

- `openloop`: what is the latency when requests arrive at random, at a mean rate that doesn't depend on how fast they
  are served?
- `closedloop`: how many calls a second come out when N clients call back to back?
- `search`: up to which rate of arrivals does a percentile of the latency stay below a limit?

The first two differ as Schroeder, Wierman and Harchol-Balter describe (2006, "Open versus closed: a cautionary tale"):
a closed loop slows down with what it measures, so that it never sees a queue longer than its clients.

The functions are to be warm: see `timing.warm_up`.
"""

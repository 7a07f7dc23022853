"""The replay: offline rows and the online ring, sampled as one; numpy and Arrow only."""

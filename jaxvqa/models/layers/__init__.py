"""What the towers and the systems are made of.

Everywhere `dtype` is the type of the multiplications and of what a layer returns; parameters, statistics, scores and softmaxes
are float32, or float64 where that is asked for. `train` applies dropout, which needs the random stream "dropout", and lets
batch normalisation take the batch's statistics, which needs the collection `batch_stats` to be mutable.
"""

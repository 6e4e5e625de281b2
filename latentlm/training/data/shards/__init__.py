"""Token shards: data larger than memory, in files that are mapped (docs/scale.md).

    format     what lies in a folder of shards
    reading    windows and held-out documents out of it, and whether it is whole
    making     documents into shards, by several processes, so that it can be killed
    tasks      what one of those processes does
    work       what lies in the folder meanwhile
"""

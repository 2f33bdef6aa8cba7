# core.cpp

def vectors() -> str: ...

# bind_engine.cpp

# bind_training.cpp

# bind_pkuseg.cpp

# bind_jieba.cpp

# bind_tagger.cpp

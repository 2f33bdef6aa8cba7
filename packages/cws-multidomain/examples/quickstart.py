"""Cut, tag, locate, add words, learn, adapt: each in a line or two, without any data but what is here."""

from cws_multidomain import Segmenter, adapt, evaluate, train

segmenter = Segmenter.load()
print(segmenter.cut("我们在北京学习，天氣很好。"))
print([(token.text, token.pos) for token in segmenter.tokenize("他2024年写信给user@example.com")])
print(segmenter.offsets(["👍很好", "你好世界"], unit="utf16")[0])

segmenter.add_words({"云计算平台": "force"})
print(segmenter.cut("我们的云计算平台"))
print(segmenter.nbest("北京大学生前来应聘", 2))

corpus = {"news": [["我们", "爱", "北京"], ["北京", "很", "大"]] * 9, "web": [["我们", "爱", "网购"]] * 9}
mine = train(corpus, epochs=5).with_domain("web")
print(mine.cut("我们爱网购"), evaluate([["我们", "爱", "网购"]], mine.cut_many(["我们爱网购"])).f1)

novel = adapt(segmenter, ["张小凡看着碧瑶。", "碧瑶也看着张小凡。"] * 9, name="novel")
print(novel.domains, novel.info["adapted"][-1]["induced"])

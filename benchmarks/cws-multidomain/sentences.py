"""Forty sentences that were written for this and cut by hand as Universal Dependencies cuts Chinese.

No model was asked, and nothing was changed after one had been. Where its treebanks differ, on suffixes and numbers, a
word of the dictionary is one word here (图书馆, not 图书 馆), which costs the shipped model some points.
"""

SENTENCES = """
我 昨天 在 图书馆 借 了 三 本 书 。
他 的 妹妹 喜欢 吃 苹果 和 香蕉 。
这 个 问题 很 难 回答 。
公司 今年 的 收入 比 去年 高 。
科学家 研究 生命 的 起源 。
我们 明天 早上 坐 火车 去 上海 。
桌子 上 有 一 杯 热 茶 。
她 不 知道 这 件 事情 是 谁 做 的 。
如果 天气 不 好 ， 我们 就 不 去 公园 。
医生 告诉 病人 要 多 喝 水 。
这 座 城市 有 两千 年 的 历史 。
经济 发展 需要 稳定 的 环境 。
孩子 在 操场 上 踢 足球 。
新 的 法律 将 在 明年 生效 。
猫 坐 在 窗户 旁边 看 鸟 。
请 给 我 一 张 纸 。
他 住 在 北京 的 一 个 小 胡同 里 。
那 位 作家 出版 了 许多 小说 。
音乐 和 电影 都 是 艺术 。
飞机 因为 天气 没有 起飞 。
我 的 电脑 比 你 的 快 。
政府 决定 减少 税收 。
两 国 领导人 举行 了 会谈 。
河流 穿过 森林 ， 最后 流入 大海 。
她 经常 练习 钢琴 。
这 部 电影 的 导演 来自 法国 。
动物 需要 空气 、 水 和 食物 。
谁 能 解释 这 个 词 的 意思 ？
工厂 去年 生产 了 五百 辆 汽车 。
植物 通过 叶子 吸收 阳光 。
旅客 可以 在 机场 购买 地图 。
研究 表明 ， 睡眠 对 健康 很 重要 。
大学 的 教授 正在 讲 古代 文学 。
父亲 给 我 买 了 一 辆 自行车 。
你 为什么 不 喜欢 这 首 歌 ？
报纸 报道 了 这 场 比赛 的 结果 。
他 正在 研究 生物 的 基因 。
部分 居民 会 参加 会议 。
他 把 手 放 在 口袋 里 。
我 对 美 的 理解 和 你 不同 。
"""

GOLD = [line.split() for line in SENTENCES.strip().splitlines()]

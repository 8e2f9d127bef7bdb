// The order of the site's search results: how-tos and guides first, the records of decisions last.
var Scorer = {
  score: ([docname, , , , score]) => {
    if (docname.startsWith("adr/")) return score - 20;
    if (docname.startsWith("how-to/")) return score + 5;
    return score;
  },
  // Sphinx's own values: they are needed where a scorer is given.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

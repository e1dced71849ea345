// Texts to try, written for this page.

export const EXAMPLES = [
  {
    name: "Lighthouse: a date",
    question: "When was the lamp replaced by an electric one?",
    context: "The lighthouse at Cape Morrow was finished in 1868 after four years of work on bare rock. Its first lamp burned whale oil and had to be wound by hand every three hours. Paraffin followed in 1891, and an electric lamp took its place in 1934, when a cable was laid from the village. The last keeper, Ines Dahl, left the tower in 1986; since then it has been watched from the harbour office, twelve kilometres away.",
  },
  {
    name: "Lighthouse: a person",
    question: "Who was the last keeper?",
    context: "The lighthouse at Cape Morrow was finished in 1868 after four years of work on bare rock. Its first lamp burned whale oil and had to be wound by hand every three hours. Paraffin followed in 1891, and an electric lamp took its place in 1934, when a cable was laid from the village. The last keeper, Ines Dahl, left the tower in 1986; since then it has been watched from the harbour office, twelve kilometres away.",
  },
  {
    name: "Normandy: a people",
    question: "Who gave their name to Normandy?",
    context: "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy, a region in France.",
  },
  {
    name: "Honey: no answer in the text",
    question: "How much does a jar of honey cost?",
    context: "A hive makes between ten and thirty kilograms of honey in a good year. Bees collect nectar within three kilometres of the hive and dry it with their wings until it holds less than a fifth of water. Sealed with wax, it keeps for decades.",
  },
];

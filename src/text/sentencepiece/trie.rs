//! A byte trie over the pieces of a model.

/// Marks a node at which no key ends.
const NO_VALUE: u32 = u32::MAX;

/// Finds the keys that begin at a place in a text.
#[derive(Debug)]
pub(in crate::text) struct Trie {
    /// Breadth first, so that a node's children lie side by side, in the order of their labels.
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    label: u8,
    children: u16,
    first_child: u32,
    value: u32,
}

impl Trie {
    /// The trie of `keys`, each with its value (below `u32::MAX`). Keys are not empty; of equal ones the least value counts.
    pub fn new(mut keys: Vec<(&[u8], u32)>) -> Self {
        keys.sort_unstable();
        // A damaged model may hold a piece twice.
        keys.dedup_by_key(|(key, _)| *key);
        let mut nodes = vec![Node { label: 0, children: 0, first_child: 0, value: NO_VALUE }];
        // For each node the keys below it, and how many of their bytes lead to it.
        let mut ranges = vec![(0..keys.len(), 0)];
        let mut parent = 0;
        while parent < nodes.len() {
            let (mut range, depth) = ranges[parent].clone();
            // Sorted keys: the one that ends here comes before those that go on.
            if let Some(&(key, value)) = keys[range.clone()].first()
                && key.len() == depth
            {
                nodes[parent].value = value;
                range.start += 1;
            }
            nodes[parent].first_child = nodes.len() as u32;
            while let Some(&(key, _)) = keys[range.clone()].first() {
                let label = key[depth];
                let end = range.start + keys[range.clone()].partition_point(|(key, _)| key[depth] == label);
                nodes.push(Node { label, children: 0, first_child: 0, value: NO_VALUE });
                ranges.push((range.start..end, depth + 1));
                nodes[parent].children += 1;
                range.start = end;
            }
            parent += 1;
        }
        Trie { nodes }
    }

    /// Length and value of every key that `text` starts with, shortest first.
    pub fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut node = &self.nodes[0];
        let path = text.iter().map_while(move |&byte| {
            let first = node.first_child as usize;
            let children = &self.nodes[first..first + usize::from(node.children)];
            node = &children[children.binary_search_by_key(&byte, |child| child.label).ok()?];
            Some(node.value)
        });
        path.enumerate().filter(|(_, value)| *value != NO_VALUE).map(|(index, value)| (index + 1, value))
    }

    /// Length of the longest key that `text` starts with.
    pub fn longest(&self, text: &[u8]) -> Option<usize> {
        self.prefixes(text).last().map(|(length, _)| length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_all_prefixes_shortest_first() {
        let keys: [&str; 6] = ["b", "ab", "abcd", "a", "\u{ff}\u{100}", "abce"];
        let trie = Trie::new(keys.iter().zip(10..).map(|(key, value)| (key.as_bytes(), value)).collect());
        let found = |text: &str| trie.prefixes(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found("abcde"), [(1, 13), (2, 11), (4, 12)]);
        assert_eq!(found("abce"), [(1, 13), (2, 11), (4, 15)]);
        assert_eq!(found("ba"), [(1, 10)]);
        assert_eq!(found("\u{ff}\u{100}a"), [(4, 14)]);
        assert_eq!(found("\u{ff}"), []);
        assert_eq!(found("c"), []);
        assert_eq!(found(""), []);
        assert_eq!(trie.longest(b"abcx"), Some(2));
        assert_eq!(trie.longest(b"x"), None);
    }

    #[test]
    fn a_key_given_twice_counts_once() {
        let trie = Trie::new(vec![(b"\0", 7), (b"\0a", 1), (b"\0", 3)]);
        assert_eq!(trie.prefixes(b"\0a").collect::<Vec<_>>(), [(1, 3), (2, 1)]);
    }

    #[test]
    fn without_keys_finds_nothing() {
        assert_eq!(Trie::new(Vec::new()).longest(b"a"), None);
    }
}
